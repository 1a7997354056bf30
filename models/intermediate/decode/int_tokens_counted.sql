-- One row per token of an accepted sequence: the visit and event that it belongs to,
-- and where the cursor stands after it.
with

sequences as (

    select * from {{ ref('int_sequences_checked') }}
    where reason is null

),

vocabulary as (

    select
        vocabulary.token_id,
        vocabulary.kind,
        vocabulary.number,
        case when kinds.role in ('gap', 'move') then vocabulary.days else 0 end as days,
        case when vocabulary.kind in ('visit', 'no_visit') then 1 else 0 end as visits,
        case when vocabulary.kind = 'event' then 1 else 0 end as events,
        -- a change of day or visit resets the hour to unknown
        case
            when vocabulary.kind = 'hour' then vocabulary.number
            when kinds.role in ('gap', 'move') or vocabulary.kind = 'bos' then 31
        end as hour_now
    from {{ ref('stg_generated__vocabulary') }} as vocabulary
    -- an id without a kind keeps its place among the others
    left join {{ ref('kinds') }} as kinds on vocabulary.kind = kinds.kind

),

-- the linter cannot read a window without an order
{{ count_tokens() }} -- noqa: PRS

select
    person_id,
    cast(position as int) as position,
    cast(token_id as int) as token_id,
    cast(visit_order as int) as visit_order,
    cast(event_number as int) as event_number,
    cast(nullif(last_hour % 32, 31) as int) as hour,
    cast(case when position > 1 then {{ dbt.dateadd(
        'day',
        'cursor_days',
        "cast(lpad(cast(start_year as " ~ dbt.type_string()
        ~ "), 4, '0') || '-01-01' as date)"
    ) }} end as date) as cursor_date
from counted
