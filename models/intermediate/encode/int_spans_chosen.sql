-- One row per person whose dates lie farther apart than the language can say: the
-- span that holds most of them. Rows outside it go to the ledger.
{%- set longest = var('longest_days') %}
with

visits as (

    select * from {{ ref('stg_omop__visit_occurrence') }}

),

events as (

    select * from {{ ref('int_events_united') }}

),

deaths as (

    select * from {{ ref('stg_omop__death') }}

),

dates as (

    select person_id, visit_start_date as a_date from visits
    union all
    select person_id, visit_end_date as a_date from visits
    union all
    select person_id, event_date as a_date from events
    union all
    select person_id, death_date as a_date from deaths

),

far_apart as (

    select person_id
    from dates
    group by 1
    having {{ days_between('min(a_date)', 'max(a_date)') }} > {{ longest }}

),

counted as (

    select
        dates.person_id,
        dates.a_date,
        count(*) over (
            partition by dates.person_id
            order by {{ days_between("cast('1970-01-01' as date)", 'dates.a_date') }}
            range between current row and {{ longest }} following
        ) as date_count
    from dates
    inner join far_apart on dates.person_id = far_apart.person_id
    {%- if var('start_date') %}
        -- what is left out for its date has no say
        where dates.a_date >= cast('{{ var("start_date") }}' as date)
    {%- else %}
        where dates.a_date is not null
    {%- endif %}

),

ranked as (

    select
        person_id,
        a_date as first_date,
        row_number() over (
            partition by person_id
            order by date_count desc, a_date asc
        ) as rank_in_person
    from (select distinct person_id, a_date, date_count from counted) as distinct_dates

),

chosen as (

    select
        person_id,
        first_date,
        cast({{ dbt.dateadd('day', longest, 'first_date') }} as date) as last_date
    from ranked
    where rank_in_person = 1

)

select * from chosen
