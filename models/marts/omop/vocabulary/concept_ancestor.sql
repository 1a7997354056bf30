-- The source's rows.
select
    cast(ancestor_concept_id as bigint) as ancestor_concept_id,
    cast(descendant_concept_id as bigint) as descendant_concept_id,
    cast(min_levels_of_separation as int) as min_levels_of_separation,
    cast(max_levels_of_separation as int) as max_levels_of_separation
from {{ source('source_cdm', 'concept_ancestor') }}
