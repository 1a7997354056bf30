-- A row: the ids of all events, in whichever table, do not count on from 1.
{%- set keys = {
    'condition_occurrence': 'condition_occurrence_id',
    'drug_exposure': 'drug_exposure_id',
    'procedure_occurrence': 'procedure_occurrence_id',
    'measurement': 'measurement_id',
    'observation': 'observation_id',
    'device_exposure': 'device_exposure_id',
} %}

with

ids as (

    {% for table, key in keys.items() %}
        select {{ key }} as event_id from {{ ref(table) }}
        {{ 'union all' if not loop.last }}
    {% endfor %}

)

{{ test_consecutive('ids', 'event_id') }}
