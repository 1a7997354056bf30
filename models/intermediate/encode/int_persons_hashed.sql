-- One row per person of the source and table, with a hash of its rows: an encode that
-- goes on from this one compares them, and encodes the persons that differ.
{%- set tables = {
    'int_persons_checked': [
        'gender_concept_id', 'race_concept_id', 'ethnicity_concept_id', 'year_of_birth',
        'split', 'reason',
    ],
    'int_visits_checked': [
        'visit_occurrence_id', 'visit_concept_id', 'visit_start_date', 'visit_end_date',
        'discharged_to_concept_id', 'repetition', 'reason',
    ],
    'int_deaths_checked': ['death_date', 'reason'],
    'int_events_checked': [
        'table_order', 'source_id', 'visit_occurrence_id', 'concept_id',
        'source_concept_id', 'event_date', 'unit_concept_id', 'hour', 'value_as_number',
        'operator_concept_id', 'value_as_concept_id', 'quantity', 'days_supply',
        'end_date', 'reason',
    ],
} %}
with

hashed as (

    {%- for table, columns in tables.items() %}

        select
            person_id,
            '{{ table }}' as table_name,
            count(*) as row_count,
            sum(hash({{ columns | join(', ') }})) as hash_sum
        from {{ ref(table) }}
        where person_id is not null
        group by 1
        {{- "\n\n        union all" if not loop.last }}
    {%- endfor %}

)

select * from hashed
