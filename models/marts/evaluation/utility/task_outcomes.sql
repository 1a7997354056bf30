-- One row per prediction task with a horizon and a kind of row that makes it true.
with

tasks as (

    select * from {{ ref('prediction_tasks') }}

),

visit_types as (

    select distinct
        visit_concept_id,
        {{ visit_type('visit_concept_id') }} as visit_type
    from {{ source('cohorts', 'visits') }}

),

final as (

    select
        tasks.task,
        tasks.horizon,
        tasks.survives,
        'visit_occurrence' as source_table,
        visit_types.visit_concept_id as concept_id
    from tasks
    inner join visit_types
        on
            tasks.outcome = visit_types.visit_type
            or (
                tasks.outcome = 'admission'
                and visit_types.visit_type in ('inpatient', 'emergency')
            )
    union all
    select
        tasks.task,
        tasks.horizon,
        tasks.survives,
        families.source_table,
        families.concept_id
    from tasks
    inner join {{ ref('incident_conditions') }} as conditions
        on tasks.condition_order = conditions.condition_order
    inner join {{ source('cohorts', 'concept_families') }} as families
        on
            conditions.concept_id = families.family_concept_id
            and families.source_table = 'condition_occurrence'
    union all
    select
        task,
        horizon,
        survives,
        'death' as source_table,
        cast(0 as bigint) as concept_id
    from tasks
    where outcome = 'death'

)

select * from final
