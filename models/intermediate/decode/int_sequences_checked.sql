-- One row per sequence: accepted, or with the reason why no row is made of it. Of a
-- person that is there twice one is taken, the same on every run.
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
        {{ array_size('token_ids') }} as token_count,
        case
            when person_id is null then 'no_person_id'
            when repetition > 1 then 'repeated_person'
            when token_ids is null or {{ array_size('token_ids') }} = 0 then 'empty'
            when not is_known then 'unknown_token'
            when not is_whole then 'not_in_grammar'
        end as reason
    from ranked

)

select * from final
