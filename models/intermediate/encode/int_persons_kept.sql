-- One row per person whose rows are all as they were in the earlier encode: its visits,
-- events and tokens are taken over. Empty where nothing came before.
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

{%- for side in ['now', 'earlier'] %}

    {{ side }}_rows as (

        {%- if not has_before() %}

        -- nothing came before
            select
                person_id,
                '' as table_name,
                0 as row_hash
            from {{ ref('int_persons_checked') }}
            where 1 = 0

        {%- else %}
    {%- for table, columns in tables.items() %}

        select
            person_id,
            '{{ table }}' as table_name,
            hash({{ columns | join(', ') }}) as row_hash
        from {{ ref(table) if side == 'now' else before(table) }}
        {{- "\n\n        union all" if not loop.last }}
    {%- endfor %}
    {%- endif %}

    ),

    {{ side }} as (

        select
            person_id,
            table_name,
            count(*) as row_count,
            sum(row_hash) as hash_sum
        from {{ side }}_rows
        group by 1, 2

    ),
{%- endfor %}

compared as (

    select
        coalesce(now.person_id, earlier.person_id) as person_id,
        coalesce(
            now.row_count = earlier.row_count and now.hash_sum = earlier.hash_sum,
            false
        ) as is_same
    from now
    full outer join earlier
        on now.person_id = earlier.person_id and now.table_name = earlier.table_name

),

final as (

    select person_id
    from compared
    where person_id is not null and {{ 'false' if var('encode_all') else 'true' }}
    group by 1
    having min(case when is_same then 1 else 0 end) = 1

)

select * from final
{%- for table in tables %}
-- depends_on: {{ ref(table) }}
{%- endfor %}
