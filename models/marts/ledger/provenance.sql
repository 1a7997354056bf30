-- One row per row that a sequence told: the sequence, and the position of its token.
{%- set tables = [
    'person', 'visit_occurrence', 'death', 'condition_occurrence', 'drug_exposure',
    'procedure_occurrence', 'measurement', 'observation', 'device_exposure',
] %}
{#- words would take as long to store as all the rest -#}
{%- set type_of_table = dbt.type_string() %}
{%- if target.type == 'duckdb' %}
    {%- set type_of_table = "enum('" ~ tables | join("', '") ~ "')" %}
{%- endif %}
with

final as (

    select
        cast('person' as {{ type_of_table }}) as cdm_table,
        person_id as row_id,
        person_id,
        position
    from {{ ref('int_persons_decoded') }}
    union all
    select
        cast('visit_occurrence' as {{ type_of_table }}) as cdm_table,
        visit_occurrence_id as row_id,
        person_id,
        position
    from {{ ref('int_visits_decoded') }}
    where not is_loose
    union all
    select
        cast(source_table as {{ type_of_table }}) as cdm_table,
        event_id as row_id,
        person_id,
        position
    from {{ ref('int_events_decoded') }}
    union all
    select
        cast('death' as {{ type_of_table }}) as cdm_table,
        person_id as row_id,
        person_id,
        position
    from {{ ref('int_deaths_decoded') }}

)

select * from final
