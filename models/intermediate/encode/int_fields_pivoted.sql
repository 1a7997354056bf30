-- One row: which parts of the record are written.
{{ config(materialized='view') }}
with

fields as (

    select * from {{ ref('int_fields_chosen') }}

),

pivoted as (

    select
        max(case when field = 'unit' then is_on end) = 1 as has_unit,
        max(case when field = 'hour' then is_on end) = 1 as has_hour,
        max(case when field = 'number' then is_on end) = 1 as has_number,
        max(case when field = 'operator' then is_on end) = 1 as has_operator,
        max(case when field = 'value_concept' then is_on end) = 1 as has_value_concept,
        max(case when field = 'quantity' then is_on end) = 1 as has_quantity,
        max(case when field = 'days_supply' then is_on end) = 1 as has_days_supply,
        max(case when field = 'end' then is_on end) = 1 as has_end
    from fields

)

select * from pivoted
