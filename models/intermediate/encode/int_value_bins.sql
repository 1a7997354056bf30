-- One row per event token, field and bin: its edges, and the shape of the values in it.
{%- set points = 8 %}
with

numbers as (

    select * from {{ ref('int_numbers_binned') }}

),

ranges as (

    select
        token_order,
        field,
        bin,
        min(number) as smallest,
        max(number) as largest,
        sum(train_count) as train_count,
        -- the digits after the point that say every value in the bin, if so few do
        max(
            case
                {%- for digits in range(7) %}
                    when number = round(number, {{ digits }}) then {{ digits }}
                {%- endfor %}
                else 15
            end
        ) as decimals
    from numbers
    group by 1, 2, 3

),

neighbours as (

    select
        *,
        lag(largest) over (partition by token_order, field order by bin) as below,
        lead(smallest) over (partition by token_order, field order by bin) as above
    from ranges

),

-- midway between the values on both sides; the upper one where no number lies between
edged as (

    select
        token_order,
        field,
        bin,
        case
            when smallest / 2 + below / 2 > below then smallest / 2 + below / 2
            when below is not null then smallest
        end as low,
        case
            when above / 2 + largest / 2 > largest then above / 2 + largest / 2
            when above is not null then above
        end as high,
        cast(train_count as bigint) as train_count,
        cast(decimals as int) as decimals
    from neighbours

),

steps as (

    {%- for step in range(points + 1) %}
        select {{ step }} as step
        {{- "\n    union all" if not loop.last }}
    {%- endfor %}

),

-- the values at {{ points + 1 }} ranks evenly spaced from the smallest to the largest
shapes as (

    select
        numbers.token_order,
        numbers.field,
        numbers.bin,
        {{ collect('numbers.number', order_by='steps.step') }} as shape
    from numbers
    inner join steps
        on
            floor(steps.step * (numbers.bin_count - 1) / {{ points }}.0)
            >= numbers.count_below_in_bin
            and floor(steps.step * (numbers.bin_count - 1) / {{ points }}.0)
            < numbers.count_below_in_bin + numbers.train_count
    group by 1, 2, 3

),

final as (

    select
        edged.token_order,
        edged.field,
        edged.bin,
        edged.low,
        edged.high,
        edged.train_count,
        edged.decimals,
        shapes.shape
    from edged
    inner join shapes
        on
            edged.token_order = shapes.token_order
            and edged.field = shapes.field
            and edged.bin = shapes.bin

){%- if has_before() %},

-- bins stay as they were fitted; a token that is new has none
frozen as (

    {{ before_renumbered('int_value_bins') }}

)

select * from frozen
{%- else %}

    select * from final
{%- endif %}
