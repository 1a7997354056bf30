-- One row per event token, field and bin of its numbers, with the shape that may leave
-- the warehouse: no number beyond those that var `min_persons` persons reach.
{%- set least_persons = var('min_persons') %}
with

bins as (

    select * from {{ ref('int_value_bins') }}

),

events as (

    {{ events_of_training() }}

),

numbers as (

    select
        token_order,
        'number' as field,
        value_bin as bin,
        person_id,
        min(value_as_number) as smallest,
        max(value_as_number) as largest
    from events
    where value_as_number is not null
    group by 1, 2, 3, 4

    union all

    select
        token_order,
        'quantity' as field,
        quantity_bin as bin,
        person_id,
        min(quantity) as smallest,
        max(quantity) as largest
    from events
    where quantity is not null
    group by 1, 2, 3, 4

),

bin_persons as (

    select token_order, field, bin, count(*) as train_persons
    from numbers
    group by 1, 2, 3

),

person_ranges as (

    select
        token_order,
        field,
        person_id,
        min(smallest) as smallest,
        max(largest) as largest
    from numbers
    group by 1, 2, 3

),

ranked as (

    select
        token_order,
        field,
        smallest,
        largest,
        row_number() over (
            partition by token_order, field order by smallest
        ) as smallest_rank,
        row_number() over (
            partition by token_order, field order by largest desc
        ) as largest_rank
    from person_ranges

),

bounds as (

    select
        token_order,
        field,
        min(case when smallest_rank = {{ least_persons }} then smallest end)
            as smallest,
        min(case when largest_rank = {{ least_persons }} then largest end) as largest
    from ranked
    group by 1, 2

),

final as (

    select
        event_tokens.token as event_token,
        bins.field,
        bins.bin,
        bins.low,
        bins.high,
        bins.train_count,
        coalesce(bin_persons.train_persons, 0) as train_persons,
        bins.decimals,
        bins.shape,
        case
            when
                bin_persons.train_persons >= {{ least_persons }}
                and bounds.smallest <= bounds.largest
                then {{ array_within(
                    'bins.shape', 'bounds.smallest', 'bounds.largest'
                ) }}
        end as shared_shape -- noqa: PRS
    from bins
    inner join {{ ref('int_event_tokens') }} as event_tokens
        on bins.token_order = event_tokens.token_order
    left join bin_persons
        on
            bins.token_order = bin_persons.token_order
            and bins.field = bin_persons.field
            and bins.bin = bin_persons.bin
    left join bounds
        on
            bins.token_order = bounds.token_order
            and bins.field = bounds.field

)

select * from final
order by event_token, field, bin
