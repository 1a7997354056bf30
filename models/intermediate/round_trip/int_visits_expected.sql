-- One row per visit that must come back: straight from staging, for visits of known
-- persons with a date that the language says and that the options leave in.
-- depends_on: {{ ref('int_persons_anchored') }}
with

visits as (

    select * from {{ ref('stg_omop__visit_occurrence') }}

),

persons as (

    select person_id, min(year_of_birth) as year_of_birth
    from {{ ref('stg_omop__person') }}
    group by 1

),

spans as (

    select * from {{ ref('int_spans_chosen') }}

),

final as (

    select
        visits.person_id,
        visits.visit_occurrence_id,
        coalesce(visits.visit_concept_id, 0) as visit_concept_id,
        {{ coarse_date('visits.visit_start_date', 'anchors.anchor_date') }}
            as visit_start_date,
        coalesce(
            {{ coarse_date('visits.visit_end_date', 'anchors.anchor_date') }},
            {{ coarse_date('visits.visit_start_date', 'anchors.anchor_date') }}
        ) as visit_end_date,
        visits.discharged_to_concept_id
    from visits
    inner join persons on visits.person_id = persons.person_id
    left join spans on visits.person_id = spans.person_id
    {%- if var('att_type') != 'day' %}
    left join {{ ref('int_persons_anchored') }} as anchors
        on visits.person_id = anchors.person_id
    {%- endif %}
    where
        visits.visit_start_date is not null
        and (
            spans.person_id is null
            or visits.visit_start_date between spans.first_date and spans.last_date
        )
        and (
            spans.person_id is null
            or visits.visit_end_date is null
            or visits.visit_end_date between spans.first_date and spans.last_date
        )
    {%- if var('start_date') %}
        and visits.visit_start_date >= cast('{{ var("start_date") }}' as date)
        {%- endif %}
    {%- if var('apply_age_filter') %}
        and not coalesce({{ is_ninety('visits.visit_start_date') }}, false)
        {%- endif %}

)

select * from final
