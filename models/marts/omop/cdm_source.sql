-- One row: what this CDM is.
{%- if var('made_by', '') %}
    {%- set name = 'Synthetic patients by omop-gpt' %}
    {%- set description = 'Synthetic data, sampled from ' ~ var('made_by')
        ~ ', which was trained on ' %}
{%- else %}
    {%- set name = 'Sequences decoded by omop-gpt' %}
    {%- set description = 'Decoded from sequences that were not sampled: '
        ~ 'they may be of real persons of ' %}
{%- endif %}
{%- set made_with = 'omop-gpt ' ~ var('version', '') %}
{%- set release_date = "cast('" ~ var('cdm_release_date', '') ~ "' as date)"
    if var('cdm_release_date', '') else 'cast(null as date)' %}
with

source_row as (

    select
        max(cdm_source_name) as cdm_source_name,
        max(source_release_date) as source_release_date
    from {{ source('source_cdm', 'cdm_source') }}

),

vocabularies as (

    select max(vocabulary_version) as vocabulary_version
    from {{ ref('omop_vocabulary') }}
    where vocabulary_id = 'None'

),

-- the clock has no say
last_dates as (

    select max(observation_period_end_date) as last_date
    from {{ ref('observation_period') }}

),

final as (

    select
        '{{ name }}' as cdm_source_name,
        'omop-gpt' as cdm_source_abbreviation,
        'Not stated' as cdm_holder,
        '{{ description }}'
        || coalesce(source_row.cdm_source_name, 'a source without a name')
        || '.' as source_description,
        cast(null as string) as source_documentation_reference,
        '{{ made_with }}' as cdm_etl_reference,
        coalesce(
            source_row.source_release_date, last_dates.last_date, date '1970-01-01'
        ) as source_release_date,
        coalesce(
            {{ release_date }},
            source_row.source_release_date,
            last_dates.last_date,
            date '1970-01-01'
        ) as cdm_release_date,
        '5.4' as cdm_version,
        cast(756265 as bigint) as cdm_version_concept_id,
        coalesce(vocabularies.vocabulary_version, 'none')
            as vocabulary_version
    from source_row
    cross join vocabularies
    cross join last_dates

)

select {{ declared_columns() }}
from final
