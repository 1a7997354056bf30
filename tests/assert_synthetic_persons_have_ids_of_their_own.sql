-- Rows: synthetic persons whose id a person of the source has, too.
{{ config(tags=['synthetic_only'], group='decode', enabled=var('made_by', '') != '') }}
select person_id
from {{ ref('person') }}
where person_id in (select person_id from {{ source('source_cdm', 'person') }})
