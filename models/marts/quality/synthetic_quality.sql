-- One row per check, with the rows of the synthetic tables that violate it.
with

{{ quality_lookups() }},

counted as (

    {{ quality_counts() }}

)

select
    check_name,
    cdm_table,
    cdm_field,
    cast(concept_id as bigint) as concept_id,
    cast(rows_violated as bigint) as rows_violated,
    cast(denominator as bigint) as denominator
from counted
