-- One row per token of an accepted sequence, with what it means, the visit and event
-- that it belongs to, and where the cursor stands after it.
with

sequences as (

    select * from {{ ref('int_sequences_checked') }}
    where reason is null

),

vocabulary as (

    select
        vocabulary.*,
        kinds.role,
        kinds.makes
    from {{ ref('stg_generated__vocabulary') }} as vocabulary
    inner join {{ ref('kinds') }} as kinds on vocabulary.kind = kinds.kind

),

unnested as (

    {{ unnest_tokens('sequences', ['person_id'], 'token_ids') }}

),

counted as (

    select
        unnested.person_id,
        unnested.position,
        vocabulary.token,
        vocabulary.kind,
        vocabulary.role,
        vocabulary.makes,
        vocabulary.days,
        vocabulary.number,
        vocabulary.source_table,
        vocabulary.concept_id,
        vocabulary.unit_concept_id,
        vocabulary.source_concept_id,
        count(case when vocabulary.kind in ('visit', 'no_visit') then 1 end)
            over (partition by unnested.person_id order by unnested.position)
            as visit_order,
        count(case when vocabulary.kind = 'event' then 1 end)
            over (partition by unnested.person_id order by unnested.position)
            as event_number,
        -- a change of day or visit resets the hour to unknown
        count(case when vocabulary.role in ('move', 'gap') then 1 end)
            over (partition by unnested.person_id order by unnested.position)
            as day_number,
        sum(
            case when vocabulary.role in ('move', 'gap') then vocabulary.days else 0 end
        )
            over (partition by unnested.person_id order by unnested.position)
            as cursor_days,
        max(case when vocabulary.kind = 'year' then vocabulary.number end)
            over (partition by unnested.person_id order by unnested.position)
            as start_year
    from unnested
    inner join vocabulary on unnested.token_id = vocabulary.token_id

),

dated as (

    select
        person_id,
        cast(position as int) as position,
        token,
        kind,
        role,
        makes,
        days,
        number,
        source_table,
        concept_id,
        unit_concept_id,
        source_concept_id,
        cast(visit_order as int) as visit_order,
        event_number,
        -- the last hour token of the day: position leads, so the largest is the last
        max(case when kind = 'hour' then position * 100 + number end)
            over (partition by person_id, day_number order by position)
        % 100 as hour,
        cast({{ dbt.dateadd(
            'day',
            'cursor_days',
            "cast(lpad(cast(start_year as " ~ dbt.type_string()
            ~ "), 4, '0') || '-01-01' as date)"
        ) }} as date) as cursor_date
    from counted

)

select * from dated
