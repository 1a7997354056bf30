-- Each visit is left once and each person's first is come to; a person has a condition
-- first once; shares are of 1; nobody lives on more likely than before.
with

visits as (

    select
        cohort,
        count(*) as row_count,
        count(case when visit_order = 1 then 1 end) as first_visits,
        count(days) as gap_count,
        -- numbers go on by one within a person, or pairs of visits are not pairs
        count(case when visit_number - visit_order <> visits_before then 1 end)
            as misnumbered,
        count(case when visit_order = visit_count then 1 end) as last_visits
    from (
        select
            visits.*,
            persons.visits_before
        from {{ ref('temporal_visits') }} as visits
        inner join {{ ref('temporal_persons') }} as persons
            on visits.person_number = persons.person_number
    )
    group by 1

),

transitions as (

    select
        cohort,
        sum(transitions) as row_count,
        sum(share) as share_sum,
        count(distinct from_state) as states
    from {{ ref('visit_transitions') }}
    group by 1

),

gaps as (

    select
        cohort,
        sum(gaps) as row_count
    from {{ ref('gaps') }}
    group by 1

),

steps as (

    select
        cohort,
        survival,
        lag(survival) over (
            partition by cohort, axis
            order by years
        ) as survival_before
    from {{ ref('survival') }}

),

final as (

    select
        visits.cohort,
        'transitions' as counted
    from visits
    left join transitions on visits.cohort = transitions.cohort
    where
        visits.row_count + visits.first_visits <> coalesce(transitions.row_count, 0)
        or abs(transitions.share_sum - transitions.states) > 1e-6

    union all

    select
        visits.cohort,
        'gaps' as counted
    from visits
    left join gaps on visits.cohort = gaps.cohort
    where visits.gap_count <> coalesce(gaps.row_count, 0)

    union all

    select cohort, 'numbers of visits' as counted
    from visits
    where misnumbered > 0 or first_visits <> last_visits

    union all

    select cohort, 'survival' as counted
    from steps
    where survival < 0 or survival > coalesce(survival_before, 1)

    union all

    select cohort, 'years at risk' as counted
    from {{ ref('onset_incidence') }}
    where person_years < -1e-6

    union all

    select cohort, 'lag repeats' as counted
    from {{ ref('lag_repeats') }}
    where jaccard < 0 or jaccard > 1

)

select * from final
