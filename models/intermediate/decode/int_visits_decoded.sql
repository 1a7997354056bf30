-- One row per visit or loose day. It starts where the cursor stands at its token and
-- ends where its last move leaves the cursor.
with

tokens as (

    select * from {{ ref('int_tokens_typed') }}
    where visit_order > 0 and role <> 'gap'

),

persons as (

    select * from {{ ref('int_persons_decoded') }}

),

visits as (

    select
        person_id,
        visit_order,
        min(position) as position,
        max(case when kind = 'no_visit' then 1 else 0 end) = 1 as is_loose,
        max(case when kind = 'visit' then concept_id end) as visit_concept_id,
        max(case when kind in ('visit', 'no_visit') then cursor_date end)
            as visit_start_date,
        sum(case when role = 'move' then days else 0 end) as stay_days,
        max(case when kind = 'discharge' then concept_id end)
            as discharged_to_concept_id
    from tokens
    group by 1, 2

),

final as (

    select
        visits.person_id,
        visits.visit_order,
        visits.position,
        visits.is_loose,
        visits.visit_concept_id,
        visits.visit_start_date,
        cast({{ dbt.dateadd(
            'day', 'visits.stay_days', 'visits.visit_start_date'
        ) }} as date) as visit_end_date,
        visits.discharged_to_concept_id,
        case
            when not visits.is_loose
                then persons.visits_before + visits.visit_order
        end as visit_occurrence_id
    from visits
    inner join persons on visits.person_id = persons.person_id

)

select * from final
