-- One row per person, as its sequence tells of it, with its death where it has one.
{{ config(post_hook="{{ read_rows('persons') }}") }}
with

tokens as (

    select * from {{ ref('int_tokens_typed') }}

),

final as (

    select
        person_id,
        cast(min(position) as int) as position,
        cast(
            max(case when kind = 'year' then number end)
            - max(case when kind = 'age' then number end) as int
        ) as year_of_birth,
        max(case when kind = 'gender' then concept_id end) as gender_concept_id,
        max(case when kind = 'race' then concept_id end) as race_concept_id,
        max(case when kind = 'ethnicity' then concept_id end) as ethnicity_concept_id,
        max(visit_order) as visit_count,
        max(event_number) as event_count,
        max(case when kind = 'death' then position end) as death_position,
        max(case when kind = 'death' then cursor_date end) as death_date
    from tokens
    group by 1

)

select * from final
