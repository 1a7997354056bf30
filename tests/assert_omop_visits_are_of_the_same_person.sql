-- Rows: events, and visits that follow one, whose visit is not of the same person.
{%- set tables = [
    'condition_occurrence',
    'drug_exposure',
    'procedure_occurrence',
    'measurement',
    'observation',
    'device_exposure',
] %}

with

visits as (

    select * from {{ ref('visit_occurrence') }}

),

visits_named as (

    {% for table in tables %}
        select
            '{{ table }}' as table_name,
            person_id,
            visit_occurrence_id
        from {{ ref(table) }}
        union all
    {% endfor %}
    select
        'visit_occurrence' as table_name,
        person_id,
        preceding_visit_occurrence_id as visit_occurrence_id
    from visits

)

select visits_named.*
from visits_named
left join visits
    on
        visits_named.visit_occurrence_id = visits.visit_occurrence_id
        and visits_named.person_id = visits.person_id
where
    visits_named.visit_occurrence_id is not null
    and visits.visit_occurrence_id is null
