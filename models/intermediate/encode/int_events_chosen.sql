-- One row per row of the source's six event tables as the options of encode want it:
-- the concept that is written, and the reason why an option leaves the row out.
{{ config(materialized='view') }}
-- depends_on: {{ ref('int_persons_checked') }}
-- depends_on: {{ ref('int_concepts_chosen') }}
-- depends_on: {{ ref('int_source_codes') }}
{%- set has_choice = var('min_num_of_patients') | int > 0 or var('with_drug_rollup') %}
{%- set has_codes = var('concept_zero') == 'source_code' %}
with

events as (

    select * from {{ ref('int_events_united') }}

),

chosen as (

    select
        events.source_table,
        events.source_id,
        events.person_id,
        events.visit_occurrence_id,
        {%- if has_choice %}
        coalesce(choices.written_concept_id, events.concept_id, 0) as concept_id,
        choices.written_concept_id is not null as has_rolled_concept,
        {%- else %}
            coalesce(events.concept_id, 0) as concept_id,
            false as has_rolled_concept,
        {%- endif %}
        events.concept_id is null as has_null_concept,
        -- what stands for concept 0
        {{ 'codes.source_concept_id' if has_codes else 'cast(null as bigint)' }}
            as source_concept_id,
        events.event_date,
        events.event_datetime,
        events.unit_concept_id,
        events.value_as_number,
        events.operator_concept_id,
        events.value_as_concept_id,
        events.quantity,
        events.days_supply,
        events.end_date,
        case
        {%- if var('start_date') %}
            when events.event_date < cast('{{ var("start_date") }}' as date)
                then 'before_start_date'
            {%- endif %}
        {%- if var('apply_age_filter') %}
            when {{ is_ninety('events.event_date') }} then 'age_90_or_more'
            {%- endif %}
        {%- if var('domain_table_list') %}
            when events.source_table not in ({{ quoted(var('domain_table_list')) }})
                then 'domain_not_chosen'
            {%- endif %}
        {%- if var('exclude_condition_type_concept_ids') %}
            when
                events.source_table = 'condition_occurrence'
                and events.type_concept_id
                in ({{ var('exclude_condition_type_concept_ids') | join(', ') }})
                then 'condition_type_excluded'
            {%- endif %}
        {%- if has_choice %}
            when choices.concept_id is not null and choices.written_concept_id is null
                then 'rare_concept'
            {%- endif %}
            when
                coalesce(events.concept_id, 0) = 0
            {%- if has_codes %}
                    and codes.source_concept_id is null
                {%- elif var('concept_zero') == 'kept' %}
                    and 1 = 0
                {%- endif %}
                then 'concept_zero'
        end as reason
    from events
    {%- if var('apply_age_filter') %}
    left join {{ ref('int_persons_checked') }} as persons
        on events.person_id = persons.person_id and persons.reason is null
    {%- endif %}
    {%- if has_choice %}
    left join {{ ref('int_concepts_chosen') }} as choices
        on
            events.source_table = choices.source_table
            and events.concept_id = choices.concept_id
    {%- endif %}
    {%- if has_codes %}
    left join {{ ref('int_source_codes') }} as codes
        on
            events.source_concept_id = codes.concept_id
            and coalesce(events.concept_id, 0) = 0
    {%- endif %}

)

select * from chosen
