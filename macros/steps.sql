{#-
    Steps of histories, as int_histories_ordered sorts them. DuckDB then looks back in the
    rows as they lie, which is one pass and no second sort, and crosses from person to
    person; elsewhere each person is a window of its own. Where a timeline is written,
    Python orders visits and events in the model's place, some three times as fast: see
    omop_gpt.ordering.
-#}

{#- The folder of visits and events in order, while dbt runs; none: the model has them. -#}
{% macro rows_folder() %}
    {{- return(
        var('timeline_folder') ~ '.rows'
        if var('timeline_folder') and target.type == 'duckdb' else none
    ) }}
{% endmacro %}

{#-
    After the model, which is a view that nobody asks then: the files, and those of the
    timeline, too, but where rows of an earlier encode come between them.
-#}
{% macro order_by_python() %}
    {%- if execute and rows_folder() %}
        {%- set histories = {} %}
        {#- who has nobody has a file without rows -#}
        {%- for part in parts_of(ref('int_persons_checked')) or [0] %}
            {%- do histories.update({
                file_of_part(part): {
                    'persons':
                        'select person_id from ' ~ ref('int_persons_checked')
                        ~ ' where reason is null and part = ' ~ part
                        ~ ' and ' ~ is_new('person_id') ~ ' order by person_id',
                    'visits': visits_to_order(part),
                    'events': events_to_order(part),
                }
            }) %}
        {%- endfor %}
        {%- set timeline = {} %}
        {%- if not has_before() %}
            {%- for name in ['visits', 'events'] %}
                {%- do timeline.update({
                    var('timeline_folder') ~ '/' ~ name:
                        graph.nodes['model.omop_gpt.' ~ name].columns | list
                }) %}
            {%- endfor %}
        {%- endif %}
        {%- do adapter.store_relation('plugin', this, [], rows_folder(), 'parquet', {
            'do': 'order',
            'histories': histories,
            'timeline': timeline,
            'meanings':
                'select source_table, concept_id, unit_concept_id, source_concept_id from '
                ~ ref('int_event_tokens') ~ ' order by token_order',
        }) %}
    {%- endif %}
{% endmacro %}

{#- The visits that are encoded, of one part or all. -#}
{% macro visits_to_order(part=none) -%}
    select
        visits.person_id,
        visits.part,
        visits.visit_occurrence_id,
        visits.repetition,
        visits.visit_concept_id,
        {{ coarse_date('visits.visit_start_date', 'anchors.anchor_date') }}
            as visit_start_date,
        {{ coarse_date('visits.visit_end_date', 'anchors.anchor_date') }}
            as visit_end_date,
        visits.discharged_to_concept_id
    from {{ ref('int_visits_checked') }} as visits
    {%- if var('att_type') != 'day' %}
    inner join {{ ref('int_persons_anchored') }} as anchors
        on visits.person_id = anchors.person_id
    {%- endif %}
    where
        visits.reason is null
        and {{ is_new('visits.person_id') }}
        {{- ' and visits.part = ' ~ part if part is not none }}
{%- endmacro %}

{#- The events, with the bins of their numbers: NULL where training has no number of a
    token. -#}
{% macro events_to_order(part=none) -%}
    select
        events.*,
        cast(
            {{ array_rank('numbers.lows', 'events.value_as_number') }} - 1 as int
        ) as value_bin,
        cast(
            {{ array_rank('quantities.lows', 'events.quantity') }} - 1 as int
        ) as quantity_bin
    from {{ ref('int_events_written') }} as events
    {%- for bins, field, number in [
        ('numbers', 'number', 'value_as_number'), ('quantities', 'quantity', 'quantity')
    ] %}
    left join (
        -- where the bins start; the first takes whatever is smaller
        select
            token_order,
            {{ collect(
                "coalesce(low, cast('-infinity' as double))", order_by='bin'
            ) }} as lows
        from {{ ref('int_value_bins') }}
        where field = '{{ field }}'
        group by 1
    ) as {{ bins }}
        on
            events.token_order = {{ bins }}.token_order
            and events.{{ number }} is not null
    {%- endfor %}
    {{- ' where events.part = ' ~ part if part is not none }}
{%- endmacro %}

{#- The visits or the events of histories, in order. -#}
{% macro ordered(name) -%}
    {%- if rows_folder() -%}
        read_parquet(
            '{{ dbt.escape_single_quotes(rows_folder()) }}/{{ name }}/*.parquet',
            hive_partitioning = false
        )
    {%- elif name == 'visits' -%}
        (select * from {{ ref('int_histories_ordered') }} where opens_visit) as visits
    {%- else -%}
        (
            select
                *,
                {{ days_between('visit_start_date', 'event_date') }} as day_offset
            from {{ ref('int_histories_ordered') }}
            where event_date is not null
        ) as events
    {%- endif -%}
{%- endmacro %}

{#- The order of the steps of all persons: unique, but for rows that repeat one another. -#}
{% macro order_of_steps() -%}
    person_id,
    step,
    visit_start_date nulls last,
    is_loose,
    visit_end_date nulls last,
    visit_concept_id nulls last,
    visit_occurrence_id nulls last,
    repetition nulls last,
    {{ written_of_event() | join(' nulls first,\n    ') }} nulls first,
    source_id nulls first
{%- endmacro %}

{#- Columns of the step before, each as previous_<column>. -#}
{% macro previous_of(columns) -%}
    {%- set window = 'partition by person_id order by ' ~ order_of_steps() -%}
    {%- for column in columns %}
        lag({{ column }}) over ({{ window if target.type != 'duckdb' }})
            as previous_{{ column }}{{ ',' if not loop.last }}
    {%- endfor %}
{%- endmacro %}

{#- A column of the step after. -#}
{% macro next_of(column) -%}
    {%- set window = 'partition by person_id order by ' ~ order_of_steps() -%}
    lead({{ column }}) over ({{ window if target.type != 'duckdb' }})
{%- endmacro %}

{#- Whether any of the columns is another than in the step before. -#}
{% macro differs_from_previous(columns) -%}
    {%- for column in columns %}
        {{ column }} is distinct from previous_{{ column }}{{ ' or' if not loop.last }}
    {%- endfor %}
{%- endmacro %}

{#- An aggregate of all steps up to each; `plain` is the same of rows as they lie. -#}
{% macro running(aggregate, plain=none) -%}
    {%- if target.type == 'duckdb' -%}
        {%- if plain -%}
            {{ plain }} over ()
        {%- else -%}
            {{ aggregate }} over (rows between unbounded preceding and current row)
        {%- endif -%}
    {%- else -%}
        {{ aggregate }} over (
            partition by person_id
            order by {{ order_of_steps() }}
            rows between unbounded preceding and current row
        )
    {%- endif -%}
{%- endmacro %}
