-- The source's rows.
select
    cast(concept_id_1 as bigint) as concept_id_1,
    cast(concept_id_2 as bigint) as concept_id_2,
    cast(relationship_id as string) as relationship_id,
    cast(valid_start_date as date) as valid_start_date,
    cast(valid_end_date as date) as valid_end_date,
    cast(invalid_reason as string) as invalid_reason
from {{ source('source_cdm', 'concept_relationship') }}
