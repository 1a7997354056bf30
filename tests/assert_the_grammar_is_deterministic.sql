-- A state and a kind have one next state, every kind but the filler is used, and each
-- kind has its tokens in one place: fixed, of a family, or of an event table.
{{ config(tags=['encode']) }}
with

repeated as (

    select 'repeated transition' as problem, state || ' ' || kind as what
    from {{ ref('transitions') }}
    group by state, kind
    having count(*) > 1

),

unused as (

    select 'unused kind' as problem, kinds.kind as what
    from {{ ref('kinds') }} as kinds
    left join {{ ref('transitions') }} as transitions on kinds.kind = transitions.kind
    where transitions.kind is null and kinds.kind <> 'pad'

),

places as (

    select distinct kind from {{ ref('fixed_tokens') }}
    union all
    select kind from {{ ref('token_families') }}
    union all
    select distinct 'event' as kind from {{ ref('event_tables') }}

),

homeless as (

    select 'kind with tokens in no place, or in two' as problem, kinds.kind as what
    from {{ ref('kinds') }} as kinds
    left join places on kinds.kind = places.kind
    group by kinds.kind
    having count(places.kind) <> 1

)

select * from repeated
union all
select * from unused
union all
select * from homeless
