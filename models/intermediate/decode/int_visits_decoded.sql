-- One row per visit or loose day. It starts where the cursor stands at its token and
-- ends where its last move leaves the cursor.
{{ config(post_hook="{{ read_rows('visits', ['*', 'type_concept_id']) }}") }}
with

tokens as (

    select * from {{ ref('int_tokens_typed') }}
    where visit_order > 0 and role <> 'gap'

),

persons as (

    select * from {{ ref('int_persons_decoded') }}

),

type_concepts as (

    select * from {{ ref('type_concepts') }}

),

-- of the visits that have any
moves as (

    select
        person_id,
        visit_order,
        sum(case when role = 'move' then days end) as stay_days,
        max(case when kind = 'discharge' then concept_id end)
            as discharged_to_concept_id
    from tokens
    where role = 'move' or kind = 'discharge'
    group by 1, 2

),

visits as (

    select
        tokens.person_id,
        tokens.visit_order,
        tokens.position,
        tokens.event_number as events_before,
        tokens.kind = 'no_visit' as is_loose,
        tokens.concept_id as visit_concept_id,
        tokens.cursor_date as visit_start_date,
        coalesce(moves.stay_days, 0) as stay_days,
        moves.discharged_to_concept_id
    from tokens
    left join moves
        on
            tokens.person_id = moves.person_id
            and tokens.visit_order = moves.visit_order
    where tokens.kind in ('visit', 'no_visit')

),

numbered as (

    select
        visits.*,
        type_concepts.type_concept_id,
        case
            when not visits.is_loose
                then persons.visits_before + visits.visit_order
        end as visit_occurrence_id
    from visits
    inner join persons on visits.person_id = persons.person_id
    left join type_concepts on type_concepts.source_table = 'visit_occurrence'

),

final as (

    select
        person_id,
        visit_order,
        position,
        events_before,
        is_loose,
        visit_concept_id,
        visit_start_date,
        cast({{ dbt.dateadd('day', 'stay_days', 'visit_start_date') }} as date)
            as visit_end_date,
        discharged_to_concept_id,
        visit_occurrence_id,
        -- among the visits alone
        case
            when not is_loose
                then
                    lag(visit_occurrence_id) over (
                        partition by person_id, is_loose
                        order by visit_order
                    )
        end as preceding_visit_occurrence_id,
        type_concept_id
    from numbered

)

select * from final
