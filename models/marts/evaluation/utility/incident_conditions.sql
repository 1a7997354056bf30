-- The conditions whose onset the prediction tasks ask for, as training patients have
-- them, or a descendant of them.
with

days as (

    select
        events.person_id,
        families.family_concept_id as concept_id,
        min(events.event_date) as first_date,
        max(events.event_date) as last_date
    from {{ source('cohorts', 'events') }} as events
    inner join {{ source('cohorts', 'concept_families') }} as families
        on
            events.source_table = families.source_table
            and events.concept_id = families.concept_id
    where
        events.cohort = 'train'
        and events.source_table = 'condition_occurrence'
        and families.family_concept_id <> 0
    group by 1, 2

),

spans as (

    select
        concept_id,
        {{ days_between('first_date', 'last_date') }} as days
    from days

),

counted as (

    select
        concept_id,
        count(*) as person_count,
        avg(case when days >= 365 then 1.0 else 0.0 end) as lasting_share,
        avg(case when days > 0 then 1.0 else 0.0 end) as repeated_share
    from spans
    group by 1

),

-- A chronic condition is noted over and over, or (as Synthea writes) at onset alone.
-- Where there are not four of them, the most frequent others are taken.
ranked as (

    select
        *,
        row_number() over (
            order by
                case
                    when lasting_share >= 0.5 or repeated_share < 0.01 then 0
                    else 1
                end asc,
                person_count desc,
                concept_id asc
        ) as condition_order
    from counted

),

final as (

    select
        cast(condition_order as int) as condition_order,
        concept_id,
        person_count,
        cast(lasting_share as double) as lasting_share,
        cast(repeated_share as double) as repeated_share
    from ranked
    where condition_order <= 4

)

select * from final
