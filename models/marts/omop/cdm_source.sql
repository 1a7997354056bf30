-- One row: what this CDM is.
with

source_row as (

    select
        max(cdm_source_name) as cdm_source_name,
        max(source_release_date) as source_release_date
    from {{ source('source_cdm', 'cdm_source') }}

),

vocabularies as (

    select max(case when vocabulary_id = 'None' then vocabulary_version end)
        as vocabulary_version
    from {{ ref('omop_vocabulary') }}

),

-- the clock has no say
last_dates as (

    select max(observation_period_end_date) as last_date
    from {{ ref('observation_period') }}

),

final as (

    select
        {% if var('made_by', '') -%}
        'Synthetic patients by omop-gpt' as cdm_source_name,
        {%- else -%}
        'Sequences decoded by omop-gpt' as cdm_source_name,
        {%- endif %}
        'omop-gpt' as cdm_source_abbreviation,
        'Not stated' as cdm_holder,
        {% if var('made_by', '') -%}
        'Synthetic data, sampled from '
        || '{{ dbt.escape_single_quotes(var('made_by')) }}, which was trained on '
        {%- else -%}
        'Decoded from sequences that were not sampled: they may be of real persons of '
        {%- endif %}
        || coalesce(source_row.cdm_source_name, 'a source without a name')
        || '.' as source_description,
        cast(null as string) as source_documentation_reference,
        'omop-gpt {{ dbt.escape_single_quotes(var('version', '')) }}'
            as cdm_etl_reference,
        coalesce(
            source_row.source_release_date, last_dates.last_date, date '1970-01-01'
        ) as source_release_date,
        {% if var('cdm_release_date', '') -%}
        date '{{ dbt.escape_single_quotes(var('cdm_release_date')) }}'
        {%- else -%}
        coalesce(
            source_row.source_release_date, last_dates.last_date, date '1970-01-01'
        )
        {%- endif %} as cdm_release_date,
        '5.4' as cdm_version,
        cast(756265 as bigint) as cdm_version_concept_id,
        coalesce(vocabularies.vocabulary_version, 'none') as vocabulary_version
    from source_row
    cross join vocabularies
    cross join last_dates

)

select
    {%- for column in model.columns.values() %}
    cast({{ column.name }} as {{ column.data_type }}) as {{ column.name }}
    {{- ',' if not loop.last }}
    {%- endfor %}
from final
