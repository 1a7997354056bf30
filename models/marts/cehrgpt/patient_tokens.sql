-- One row per token of CEHR-GPT's sequences, by the rules of cehrbert_data 0.2.3:
-- `D<n>` between visits, `i-D<n>` inside stays, `LT` from 1,080 days on.
{%- set text = dbt.type_string() %}
{%- set epoch = "cast('1970-01-01' as date)" %}
with

visits as (

    select * from {{ ref('patient_visits') }}

),

events as (

    select * from {{ ref('events') }}

),

-- priority is the place within a visit; events have 0
prompts as (

    select
        visits.person_id,
        visits.split,
        visits.part,
        0 as visit_order,
        slots.priority,
        visits.visit_concept_id,
        visits.is_stay,
        cast(-1 as bigint) as age,
        case slots.priority
            when -10
                then 'year:' || cast(extract(year from visits.start_date) as {{ text }})
            when -9
                then 'age:' || coalesce(cast(visits.age as {{ text }}), 'unknown')
            when -8
                then
                    case
                        when visits.gender_concept_id = 0 then 'Gender/0'
                        else cast(visits.gender_concept_id as {{ text }})
                    end
            when -7
                then
                    case
                        when visits.race_concept_id = 0 then 'Race/0'
                        else cast(visits.race_concept_id as {{ text }})
                    end
        end as token,
        visits.start_date as token_date,
        0 as seconds
    from visits
    cross join (values (-10), (-9), (-8), (-7)) as slots (priority)
    where visits.visit_order = 1

),

frames as (

    select
        visits.person_id,
        visits.split,
        visits.part,
        visits.visit_order,
        slots.priority,
        visits.visit_concept_id,
        visits.is_stay,
        coalesce(visits.age, -1) as age,
        case slots.priority
            when -2 then '[VS]'
            when -1 then visits.type_token
            when 100 then visits.discharge_token
            when 200 then '[VE]'
        end as token,
        case when slots.priority > 0 then visits.end_date else visits.start_date end
            as token_date,
        -- a visit closes in the last minute of its day
        case when slots.priority > 0 then 86340 else 0 end as seconds
    from visits
    cross join (values (-2), (-1), (100), (200)) as slots (priority)
    where slots.priority <> 100 or visits.is_stay

),

united as (

    select
        *,
        token_date as placed_date,
        cast(null as {{ text }}) as row_key,
        0 as event_order,
        0 as mlm_skip_value,
        cast(0 as float) as number_as_value,
        '0' as concept_as_value,
        0 as is_numeric_type,
        0 as concept_value_mask,
        'N/A' as unit
    from (
        select * from prompts
        union all
        select * from frames
    ) as artificial

    union all

    select
        events.person_id,
        visits.split,
        visits.part,
        events.visit_order,
        0 as priority,
        visits.visit_concept_id,
        visits.is_stay,
        coalesce(visits.age, -1) as age,
        cast(events.concept_id as {{ text }}) as token,
        events.event_date as token_date,
        coalesce(events.hour, 0) * 3600 as seconds,
        -- the days inside a stay are counted within it
        least(greatest(events.event_date, visits.start_date), visits.end_date)
            as placed_date,
        cast(events.source_id as {{ text }}) as row_key,
        events.event_order,
        case when events.source_table = 'measurement' then 1 else 0 end
            as mlm_skip_value,
        cast(events.value_as_number as float) as number_as_value,
        cast(events.value_as_concept_id as {{ text }}) as concept_as_value,
        case when events.value_as_number is null then 0 else 1 end as is_numeric_type,
        case
            when
                events.value_as_number is null and events.value_as_concept_id is null
                then 0
            else 1
        end as concept_value_mask,
        coalesce(cast(events.unit_concept_id as {{ text }}), 'N/A') as unit
    from events
    inner join visits
        on
            events.person_id = visits.person_id
            and events.visit_order = visits.visit_order

),

dated as (

    select
        *,
        {{ days_between(epoch, 'token_date') }} * cast(86400 as bigint) + seconds
            as epoch_time
    from united

),

-- events of the same time come by their row's id as text, as they do there
ordered as (

    select
        *,
        row_number() over by_place as place,
        lag(placed_date) over by_place as previous_date,
        lag(priority) over by_place as previous_priority,
        lag(epoch_time) over by_place as previous_time
    from dated
    window by_place as (
        partition by person_id
        order by visit_order, priority, epoch_time, row_key, token, event_order
    )

),

timed as (

    select
        *,
        case
            when priority = -2 and visit_order > 1
                then
                    greatest({{ days_between('previous_date', 'placed_date') }}, 0)
            -- the days before the first event of a stay are not told there
            when is_stay and (priority = 100 or priority = 0 and previous_priority = 0)
                then nullif({{ days_between('previous_date', 'placed_date') }}, 0)
        end as days_before,
        -- events outside stays are one group; in stays, those of the same time
        case
            when priority = 0 and previous_priority < 0 then 1
            when priority = 0 and is_stay and epoch_time > previous_time then 1
            when priority = 100 then 1
            when priority = 200 and not is_stay then 1
            else 0
        end as opens_group
    from ordered

),

numbered as (

    select
        *,
        place + count(days_before) over by_person as position,
        sum(
            case
                when priority = -2 then 1
                when priority = 0 and previous_priority = 0 then opens_group
                else 0
            end
        ) over by_person as visit_concept_order,
        sum(opens_group) over by_visit as concept_order
    from timed
    window
        by_person as (partition by person_id order by place),
        by_visit as (partition by person_id, visit_order order by place)

),

-- the days before a token are a token of their own, at its place
final as (

    select
        person_id,
        split,
        part,
        cast(position as int) as position,
        token,
        cast(visit_order as int) as visit_order,
        visit_concept_id,
        cast(visit_concept_order as int) as visit_concept_order,
        cast(concept_order as int) as concept_order,
        case
            when priority = 0 and is_stay then 0.1 * cast(concept_order as double)
            else cast(priority as double)
        end as priority,
        cast(age as bigint) as age,
        epoch_time,
        mlm_skip_value,
        number_as_value,
        concept_as_value,
        is_numeric_type,
        concept_value_mask,
        unit
    from numbered

    union all

    select
        person_id,
        split,
        part,
        cast(position - 1 as int) as position,
        case when priority = -2 then '' else 'i-' end
        || case
            when days_before < 1080
                then 'D' || cast(days_before as {{ text }})
            else 'LT'
        end as token,
        cast(visit_order as int) as visit_order,
        visit_concept_id,
        cast(visit_concept_order as int) as visit_concept_order,
        cast(concept_order as int) as concept_order,
        case
            when priority = -2 then cast(-3 as double)
            when priority = 100 then 99.99
            else 0.1 * cast(concept_order as double) - 0.01
        end as priority,
        cast(age as bigint) as age,
        epoch_time,
        0 as mlm_skip_value,
        cast(0 as float) as number_as_value,
        '0' as concept_as_value,
        0 as is_numeric_type,
        0 as concept_value_mask,
        'N/A' as unit
    from numbered
    where days_before is not null

)

select * from final
