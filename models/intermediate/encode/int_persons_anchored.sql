-- One row per person whose dates are made coarse by var `att_type`, with the day that
-- weeks or months are counted from: 1 January of the sequence's first year. Empty where
-- days are kept.
with

dates as (

    select person_id, visit_start_date as a_date, 1 as choice
    from {{ ref('int_visits_checked') }}
    where reason is null

    union all

    select person_id, event_date as a_date, 1 as choice
    from {{ ref('int_events_checked') }}
    where reason is null and visit_occurrence_id is null

    union all

    select person_id, death_date as a_date, 2 as choice
    from {{ ref('int_deaths_checked') }}
    where reason is null

),

firsts as (

    select
        person_id,
        coalesce(
            min(case when choice = 1 then a_date end), min(a_date)
        ) as first_date
    from dates
    {%- if var('att_type') == 'day' %}
        where 1 = 0
    {%- endif %}
    group by 1

),

final as (

    select
        person_id,
        cast({{ dbt.date_trunc('year', 'first_date') }} as date) as anchor_date
    from firsts

)

select * from final
