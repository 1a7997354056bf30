-- The source's rows.
select
    cast(concept_id as bigint) as concept_id,
    cast(concept_synonym_name as string) as concept_synonym_name,
    cast(language_concept_id as bigint) as language_concept_id
from {{ source('source_cdm', 'concept_synonym') }}
