-- One row per person and condition for as long as it goes on.
{%- set keys = ['person_id', 'condition_concept_id'] %}
{%- set days = 30 %}
with

spans as (

    select
        person_id,
        condition_concept_id,
        condition_start_date as start_date,
        greatest(
            condition_start_date,
            coalesce(
                condition_end_date,
                cast({{ dbt.dateadd('day', 1, 'condition_start_date') }} as date)
            )
        ) as end_date
    from {{ ref('condition_occurrence') }}
    where condition_concept_id <> 0

),

eras as (

    {{ eras('spans', keys, days) }} -- noqa: PRS

),

final as (

    select
        cast({{ era_id(keys) }} as bigint) as condition_era_id,
        cast(person_id as bigint) as person_id,
        cast(condition_concept_id as bigint) as condition_concept_id,
        cast(start_date as date) as condition_era_start_date,
        cast(end_date as date) as condition_era_end_date,
        cast(span_count as int) as condition_occurrence_count
    from eras

)

select * from final
