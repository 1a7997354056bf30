-- One row per cohort, frequent condition and age: the persons who have it first then.
with

onsets as (

    select * from {{ ref('temporal_onset_ages') }}

),

final as (

    select
        cohort,
        concept_id,
        table_rank,
        age,
        count(*) as persons
    from onsets
    group by 1, 2, 3, 4

)

select * from final
