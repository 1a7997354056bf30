-- One row per sequence: the person whose history it tells.
{%- set mark = 'null' %}
{%- if var('made_by', '') %}
    {%- set mark = "'omop-gpt:' || cast(person_id as string)" %}
{%- endif %}
with

persons as (

    select * from {{ ref('int_persons_decoded') }}

),

final as (

    select
        cast(person_id as bigint) as person_id,
        cast(gender_concept_id as bigint) as gender_concept_id,
        cast(year_of_birth as int) as year_of_birth,
        -- The sequence tells the year alone; a month or day would be made up.
        cast(null as int) as month_of_birth,
        cast(null as int) as day_of_birth,
        cast(null as timestamp) as birth_datetime,
        cast(race_concept_id as bigint) as race_concept_id,
        cast(ethnicity_concept_id as bigint) as ethnicity_concept_id,
        cast(null as bigint) as location_id,
        cast(null as bigint) as provider_id,
        cast(null as bigint) as care_site_id,
        cast({{ mark }} as string) as person_source_value,
        cast(null as string) as gender_source_value,
        cast(null as bigint) as gender_source_concept_id,
        cast(null as string) as race_source_value,
        cast(null as bigint) as race_source_concept_id,
        cast(null as string) as ethnicity_source_value,
        cast(null as bigint) as ethnicity_source_concept_id
    from persons

)

select * from final
order by person_id
