-- Rows: dates of visits, events and deaths outside their person's observation period.
{%- set dates = [
    ('visit_occurrence', 'visit_start_date'),
    ('visit_occurrence', 'visit_end_date'),
    ('condition_occurrence', 'condition_start_date'),
    ('drug_exposure', 'drug_exposure_start_date'),
    ('procedure_occurrence', 'procedure_date'),
    ('measurement', 'measurement_date'),
    ('observation', 'observation_date'),
    ('device_exposure', 'device_exposure_start_date'),
    ('death', 'death_date'),
] %}

with

observation_periods as (

    select * from {{ ref('observation_period') }}

),

recorded_dates as (

    {% for table, column in dates %}
        select
            '{{ table }}' as table_name,
            person_id,
            {{ column }} as recorded_date
        from {{ ref(table) }}
        {{ 'union all' if not loop.last }}
    {% endfor %}

)

select recorded_dates.*
from recorded_dates
left join observation_periods
    on
        recorded_dates.person_id = observation_periods.person_id
        and recorded_dates.recorded_date
        between observation_periods.observation_period_start_date
        and observation_periods.observation_period_end_date
where observation_periods.person_id is null
