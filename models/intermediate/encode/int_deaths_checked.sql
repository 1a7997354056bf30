-- One row per row of the source's death table: the earliest of each person is encoded,
-- the others have a reason.
with

deaths as (

    select * from {{ ref('stg_omop__death') }}

),

persons as (

    select * from {{ ref('int_persons_checked') }}
    where reason is null

),

spans as (

    select * from {{ ref('int_spans_chosen') }}

),

placed as (

    select
        deaths.person_id,
        deaths.death_date,
        case
            when persons.person_id is null then 'unknown_person'
            when deaths.death_date is null then 'no_date'
            when deaths.death_date not between spans.first_date and spans.last_date
                then 'outside_language'
            {%- if var('start_date') %}
            when deaths.death_date < cast('{{ var("start_date") }}' as date)
                then 'before_start_date'
            {%- endif %}
            {%- if var('apply_age_filter') %}
            when {{ is_ninety('deaths.death_date') }} then 'age_90_or_more'
            {%- endif %}
            {%- if not var('include_death') %}
            else 'death_not_chosen'
            {%- endif %}
        end as reason
    from deaths
    left join persons on deaths.person_id = persons.person_id
    left join spans on deaths.person_id = spans.person_id

),

checked as (

    select
        person_id,
        death_date,
        case
            when reason is not null then reason
            when
                row_number() over (
                    partition by person_id, reason
                    order by death_date
                ) > 1
                then 'repeated_death'
        end as reason
    from placed

)

select * from checked
