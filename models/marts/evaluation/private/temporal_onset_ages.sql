-- One row per person and frequent condition: the age in years at which it is told
-- first.
with

onsets as (

    select * from {{ ref('temporal_onsets') }}

),

persons as (

    select * from {{ ref('temporal_persons') }}

),

concepts as (

    select * from {{ ref('temporal_concepts') }}
    where source_table = 'condition_occurrence' and table_rank <= 50

),

final as (

    select
        onsets.cohort,
        onsets.person_number,
        concepts.concept_id,
        concepts.table_rank,
        cast(extract(year from onsets.onset_date) as int)
        - persons.year_of_birth as age
    from onsets
    inner join persons on onsets.person_number = persons.person_number
    inner join concepts on onsets.concept_number = concepts.concept_number

)

select * from final
