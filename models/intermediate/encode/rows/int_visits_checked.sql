-- One row per row of the source's visit_occurrence table: encoded, or with a reason.
with

visits as (

    select * from {{ ref('stg_omop__visit_occurrence') }}

),

persons as (

    select * from {{ ref('int_persons_checked') }}
    where reason is null

),

spans as (

    select * from {{ ref('int_spans_chosen') }}

),

placed as (

    select
        visits.visit_occurrence_id,
        visits.person_id,
        persons.part,
        coalesce(visits.visit_concept_id, 0) as visit_concept_id,
        visits.visit_start_date,
        coalesce(visits.visit_end_date, visits.visit_start_date) as visit_end_date,
        visits.discharged_to_concept_id,
        visits.visit_concept_id is null as has_null_concept,
        visits.visit_end_date is null as has_null_end,
        case
            when persons.person_id is null then 'unknown_person'
            when visits.visit_start_date is null then 'no_date'
            when
                visits.visit_start_date not between spans.first_date and spans.last_date
                or visits.visit_end_date
                not between spans.first_date and spans.last_date
                then 'outside_language'
            {%- if var('start_date') %}
            when visits.visit_start_date < cast('{{ var("start_date") }}' as date)
                then 'before_start_date'
            {%- endif %}
            {%- if var('apply_age_filter') %}
            when {{ is_ninety('visits.visit_start_date') }} then 'age_90_or_more'
            {%- endif %}
        end as reason
    from visits
    left join persons on visits.person_id = persons.person_id
    left join spans on visits.person_id = spans.person_id

),

-- rows that share an id are kept apart; events go to the first that is encoded
repeated_ids as (

    select
        person_id,
        visit_occurrence_id,
        count(*) as row_count
    from visits
    group by 1, 2
    having count(*) > 1

),

-- hardly any row: the others need no order
repeated as (

    select
        placed.*,
        row_number() over (
            partition by placed.person_id, placed.visit_occurrence_id, placed.reason
            order by
                placed.visit_start_date nulls last,
                placed.visit_end_date nulls last,
                placed.visit_concept_id,
                placed.discharged_to_concept_id nulls last
        ) as repetition
    from placed
    inner join repeated_ids
        on
            placed.person_id is not distinct from repeated_ids.person_id
            and placed.visit_occurrence_id
            is not distinct from repeated_ids.visit_occurrence_id

),

checked as (

    select
        placed.*,
        1 as repetition
    from placed
    left join repeated_ids
        on
            placed.person_id is not distinct from repeated_ids.person_id
            and placed.visit_occurrence_id
            is not distinct from repeated_ids.visit_occurrence_id
    where repeated_ids.row_count is null

    union all

    select * from repeated

),

final as (

    select
        visit_occurrence_id,
        person_id,
        part,
        visit_concept_id,
        visit_start_date,
        visit_end_date,
        discharged_to_concept_id,
        has_null_concept,
        has_null_end,
        cast(repetition as int) as repetition,
        reason
    from checked

)

select * from final
