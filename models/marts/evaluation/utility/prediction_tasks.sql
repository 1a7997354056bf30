-- One row per prediction task: what it looks ahead from, how far, and for what.
{%- set tasks = [
    {'task': 'readmit30', 'visit': 'inpatient', 'at_end': true, 'horizon': 30,
     'survives': true, 'outcome': 'inpatient'},
    {'task': 'admit180', 'visit': 'outpatient', 'horizon': 180,
     'outcome': 'admission'},
    {'task': 'mortality365', 'least_age': 50, 'horizon': 365, 'outcome': 'death'},
    {'task': 'next_visit_type', 'outcome': 'next_visit_type'},
    {'task': 'los_over_3', 'visit': 'inpatient', 'outcome': 'stay'},
] %}
with

final as (

    {%- for task in tasks %}
        select
            '{{ task.task }}' as task,
            '{{ task.visit | default('any') }}' as visit_type,
            {{ task.at_end | default(false) }} as at_end,
            cast({{ task.least_age | default('null') }} as int) as least_age,
            cast({{ task.horizon | default(0) }} as int) as horizon,
            {{ task.survives | default(false) }} as survives,
            '{{ task.outcome }}' as outcome,
            cast(0 as int) as condition_order
        union all
    {%- endfor %}
    select
        concat('incident_', concept_id) as task,
        'any' as visit_type,
        false as at_end,
        18 as least_age,
        1095 as horizon,
        false as survives,
        'condition' as outcome,
        condition_order
    from {{ ref('incident_conditions') }}

)

select * from final
