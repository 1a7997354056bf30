-- Every whole number of days up to the longest, forward and back, is written in exactly
-- one way, as a gap, a move or an end (a move of 0 is left out).
{{ config(tags=['encode']) }}
{%- set longest = var('longest_days') %}
with

digits as (

    {%- for digit in range(10) %}
        select {{ digit }} as digit
        {{- "\n        union all" if not loop.last }}
    {%- endfor %}

),

numbers as (

    select
        ones.digit
        + 10 * tens.digit
        + 100 * hundreds.digit
        + 1000 * thousands.digit
        + 10000 * ten_thousands.digit
        - {{ longest }} as days
    from digits as ones
    cross join digits as tens
    cross join digits as hundreds
    cross join digits as thousands
    cross join digits as ten_thousands

),

roles as (

    select distinct role from {{ ref('int_days_spelled') }}

),

wanted as (

    select roles.role, numbers.days
    from numbers
    cross join roles
    where
        numbers.days <= {{ longest }}
        -- dates that are made coarse lie on a grid
        and numbers.days % {{ grid_days() }} = 0
        and (roles.role <> 'move' or numbers.days <> 0)

),

walks as (

    select role, days, count(*) as walk_count
    from {{ ref('int_days_spelled') }}
    group by 1, 2

)

select
    wanted.role,
    wanted.days,
    coalesce(walks.walk_count, 0) as walk_count
from wanted
left join walks on wanted.role = walks.role and wanted.days = walks.days
where coalesce(walks.walk_count, 0) <> 1
