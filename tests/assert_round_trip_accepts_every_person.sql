-- No encoded sequence is refused, and every person of the timeline has one.
{{ config(tags=['round_trip']) }}
with

sequences as (

    select person_id, reason from {{ ref('int_sequences_checked') }}

),

persons as (

    select person_id from {{ ref('persons') }}

)

select
    coalesce(persons.person_id, sequences.person_id) as person_id,
    sequences.reason
from persons
full outer join sequences on persons.person_id = sequences.person_id
where
    persons.person_id is null
    or sequences.person_id is null
    or sequences.reason is not null
