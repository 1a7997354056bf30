-- One row per sequence: accepted, or with the reason why no row is made of it. Of a
-- person that is there twice one is taken, the same on every run. A person must have a
-- year of birth in a CDM, but not in the round trip, which compares with the source.
{%- set is_cdm = var('omop_schema', 'synthetic') != 'round_trip' %}
with

sequences as (

    select * from {{ ref('int_sequences_walked') }}

),

repeated as (

    select person_id
    from sequences
    where person_id is not null
    group by 1
    having count(*) > 1

),

ranked as (

    select
        *,
        row_number() over (partition by person_id order by token_ids) as repetition
    from sequences
    where person_id in (select person_id from repeated)

    union all

    select
        *,
        1 as repetition
    from sequences
    where
        person_id is null
        or person_id not in (select person_id from repeated)

),

final as (

    select
        person_id,
        token_ids,
        token_count,
        case
            when person_id is null then 'no_person_id'
            when repetition > 1 then 'repeated_person'
            when coalesce(token_count, 0) = 0 then 'empty'
            when not is_known then 'unknown_token'
            when not is_whole then 'not_in_grammar'
            when {{ is_cdm }} and not has_age then 'no_year_of_birth'
        end as reason
    from ranked

)

select * from final
