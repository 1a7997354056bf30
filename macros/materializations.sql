{#-
    A view of DuckDB, made in its place. dbt's own is made beside it, renamed, and the one
    before dropped: two more statements a model, of ten milliseconds each.
-#}
{% materialization view, adapter='duckdb' -%}
    {%- call view_in_place() %}create or replace view {{ this }} as {{ sql }}{% endcall %}
    {{ return({'relations': [this.incorporate(type='view')]}) }}
{%- endmaterialization %}

{#-
    A table that is kept in files of <omop_folder>/<table>, and a view of them: its rows
    are written once, in their order.
-#}
{% materialization files, adapter='duckdb' -%}
    {%- set folder = var('omop_folder') ~ '/' ~ this.identifier %}
    {%- call view_in_place() %}
        {%- do adapter.store_relation('plugin', this, [], folder, 'parquet', {
            'do': 'copy', 'query': sql
        }) %}
        {{- view_of_files(folder_of_table(var('omop_folder'))) }}
    {%- endcall %}
    {{ return({'relations': [this.incorporate(type='view')]}) }}
{%- endmaterialization %}

{#- Build the model as a view, by the caller's statement, between its hooks. -#}
{% macro view_in_place() %}
    {%- set existing = load_cached_relation(this) %}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}
    {%- if existing is not none and not existing.is_view %}
        {%- do adapter.drop_relation(existing) %}
    {%- endif %}
    {%- if model.config.contract.enforced %}
        {%- do get_assert_columns_equivalent(sql) %}
    {%- endif %}
    {%- set statement_of_view = caller() %}
    {% call statement('main') %}{{ statement_of_view }}{% endcall %}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {%- do adapter.commit() %}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
{% endmacro %}
