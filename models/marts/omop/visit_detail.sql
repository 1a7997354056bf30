-- No row: sequences know visits, not their parts.
select
    {%- for column in model.columns.values() %}
        cast(null as {{ column.data_type }}) as {{ column.name }}
        {{- ',' if not loop.last }}
    {%- endfor %}
where false
