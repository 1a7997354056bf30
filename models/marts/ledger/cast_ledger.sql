-- One row per source column with values that cannot be cast to its declared type, and
-- are NULL in staging. Spark stops at such a value instead, and has no row here.
with

casts as (

    {%- if target.type == 'duckdb' %}

        select
            source_table,
            column_name,
            found_type,
            wanted_type,
            row_count,
            value_count,
            uncast_count,
            array_to_string(examples, ' | ') as examples
        from {{ source('omop_casts', 'casts') }}

    {%- else %}

        select
            cast(null as {{ dbt.type_string() }}) as source_table,
            cast(null as {{ dbt.type_string() }}) as column_name,
            cast(null as {{ dbt.type_string() }}) as found_type,
            cast(null as {{ dbt.type_string() }}) as wanted_type,
            cast(null as bigint) as row_count,
            cast(null as bigint) as value_count,
            cast(null as bigint) as uncast_count,
            cast(null as {{ dbt.type_string() }}) as examples
        where 1 = 0

    {%- endif %}

),

final as (

    select
        source_table,
        column_name,
        found_type,
        wanted_type,
        row_count,
        value_count,
        uncast_count,
        cast(uncast_count as double) / value_count as uncast_share,
        examples
    from casts

)

select * from final
order by source_table, column_name
