-- Rows: ids that two event rows share, in one table or in two.
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

select
    event_id,
    count(*) as count_rows
from ids
group by event_id
having count(*) > 1
