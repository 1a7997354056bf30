-- One row per cohort, axis and step of it in which somebody dies: the Kaplan-Meier
-- estimate at its end. Steps are years of age and quarters of follow-up. Days on which
-- fewer than 20 are at risk are left out: one death would halve the curve.
with

deaths as (

    select * from {{ ref('temporal_risk_sets') }}
    where deaths > 0 and at_risk >= 20

),

stepped as (

    select
        cohort,
        axis,
        case
            when axis = 'age' then floor(life_day / 365.25) + 1
            else floor(4 * life_day / 365.25) / 4 + 0.25
        end as years,
        min(at_risk) as at_risk,
        cast(sum(deaths) as bigint) as deaths,
        -- below 0 where all die: a number for the logarithm of 0
        sum(
            case when deaths < at_risk then ln(1 - deaths / cast(at_risk as double))
                else -1000
            end
        ) as log_ratio,
        sum(
            case when deaths < at_risk
                    then deaths / (cast(at_risk as double) * (at_risk - deaths))
            end
        ) as variance
    from deaths
    group by 1, 2, 3

),

summed as (

    select
        cohort,
        axis,
        years,
        at_risk,
        deaths,
        exp(
            sum(log_ratio) over (partition by cohort, axis order by years)
        ) as survival,
        sqrt(
            sum(variance) over (partition by cohort, axis order by years)
        ) as relative_error
    from stepped

),

final as (

    select
        cohort,
        axis,
        cast(years as double) as years,
        at_risk,
        deaths,
        survival,
        -- Greenwood's formula
        survival * relative_error as standard_error
    from summed

)

select * from final
