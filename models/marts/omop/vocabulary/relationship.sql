-- The source's rows.
select
    cast(relationship_id as string) as relationship_id,
    cast(relationship_name as string) as relationship_name,
    cast(is_hierarchical as string) as is_hierarchical,
    cast(defines_ancestry as string) as defines_ancestry,
    cast(reverse_relationship_id as string) as reverse_relationship_id,
    cast(relationship_concept_id as bigint) as relationship_concept_id
from {{ source('source_cdm', 'relationship') }}
