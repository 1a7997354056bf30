-- A number that comes back lies in the bin that it went into, with no more digits after
-- the point than the numbers of training in that bin have.
{{ config(tags=['round_trip']) }}
with

restored as (

    select * from {{ ref('int_events_restored') }}

),

numbers as (

    select event_token, 'number' as field, value_bin as bin, value_as_number as number
    from restored
    where value_as_number is not null
    union all
    select event_token, 'quantity' as field, quantity_bin as bin, quantity as number
    from restored
    where quantity is not null

),

bins as (

    select * from {{ ref('value_bins') }}

)

select
    numbers.event_token,
    numbers.field,
    numbers.bin,
    bins.low,
    bins.high,
    count(*) as row_count
from numbers
left join bins
    on
        numbers.event_token = bins.event_token
        and numbers.field = bins.field
        and numbers.bin = bins.bin
where
    bins.bin is null
    or numbers.number < bins.low
    or numbers.number >= bins.high
    or (
        bins.decimals <= 6
        and numbers.number
        <> round(numbers.number * power(10, bins.decimals)) / power(10, bins.decimals)
    )
group by 1, 2, 3, 4, 5
