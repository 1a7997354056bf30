-- One row per event token, field and bin of its numbers, with the shape of the values
-- in it. The round trip reads the exact shapes, which stay in the warehouse.
with

source as (

    select *
    {%- if var('omop_schema', 'synthetic') == 'round_trip' %}
    from {{ ref('value_bins') }}
    {%- else %}
        from {{ source('generated', 'value_bins') }}
    {%- endif %}

),

typed as (

    select
        cast(event_token as {{ dbt.type_string() }}) as event_token,
        cast(field as {{ dbt.type_string() }}) as field,
        cast(bin as int) as bin,
        cast(decimals as int) as decimals,
        shape
    from source

)

select * from typed
