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

-- the third word of a history says the age in its first year, or that nobody knows
unknown_ages as (

    select token_id
    from {{ ref('stg_generated__vocabulary') }}
    where kind = 'age_unknown' and {{ is_cdm }}

),

final as (

    select
        ranked.person_id,
        ranked.token_ids,
        {{ array_size('ranked.token_ids') }} as token_count,
        case
            when ranked.person_id is null then 'no_person_id'
            when ranked.repetition > 1 then 'repeated_person'
            when
                ranked.token_ids is null or {{ array_size('ranked.token_ids') }} = 0
                then 'empty'
            when not ranked.is_known then 'unknown_token'
            when not ranked.is_whole then 'not_in_grammar'
            when unknown_ages.token_id is not null then 'no_year_of_birth'
        end as reason
    from ranked
    left join unknown_ages
        on {{ array_get('ranked.token_ids', 2) }} = unknown_ages.token_id

)

select * from final
