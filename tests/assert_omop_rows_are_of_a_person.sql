-- Rows: persons of other tables that table person lacks.
{%- set tables = [
    'visit_occurrence',
    'condition_occurrence',
    'drug_exposure',
    'procedure_occurrence',
    'measurement',
    'observation',
    'device_exposure',
    'observation_period',
    'death',
] %}

with

named as (

    {% for table in tables %}
        select distinct
            '{{ table }}' as table_name,
            person_id
        from {{ ref(table) }}
        {{ 'union all' if not loop.last }}
    {% endfor %}

)

select named.*
from named
left join {{ ref('person') }} as persons on named.person_id = persons.person_id
where persons.person_id is null
