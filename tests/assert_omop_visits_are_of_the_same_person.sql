-- Rows: tables, with how many events, or visits that follow one, name a visit, and how
-- many of them find it, of the same person. (To look for the others alone takes half as
-- long again.)
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

select
    visits_named.table_name,
    count(visits_named.visit_occurrence_id) as named_count,
    count(visits.visit_occurrence_id) as found_count
from visits_named
left join visits
    on
        visits_named.visit_occurrence_id = visits.visit_occurrence_id
        and visits_named.person_id = visits.person_id
group by visits_named.table_name
having
    count(visits_named.visit_occurrence_id)
    <> count(visits.visit_occurrence_id)
