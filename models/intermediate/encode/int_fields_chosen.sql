-- One row per part of the record, switched on or off by the grammar or by var `fields`.
{{ config(materialized='view') }}
with

fields as (

    select * from {{ ref('fields') }}

),

chosen as (

    select
        field,
        case field
        {%- for field, is_on in var('fields').items() %}
            when '{{ field }}' then {{ is_on | int }}
            {%- endfor %}
            when 'always' then 1
            else is_on
        end as is_on
    from fields

)

select * from chosen
