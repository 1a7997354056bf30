-- Nothing in the timeline lacks a token, and positions are 1, 2, 3 … in each person.
{{ config(tags=['encode']) }}
with

tokens as (

    select * from {{ ref('tokens') }}

),

counted as (

    select
        person_id,
        count(*) as token_count,
        min(position) as first_position,
        max(position) as last_position,
        count(distinct position) as position_count,
        sum(case when token_id is null or kind is null then 1 else 0 end) as unknown_count
    from tokens
    group by 1

)

select * from counted
where
    unknown_count > 0
    or first_position <> 1
    or last_position <> token_count
    or position_count <> token_count
